"""The breakdown of a decode step: which operation belongs to which part, and how nested spans are counted."""

import sys

import pytest
from ggufs import write_llama

from packlight.bench import breakdown, render

HLO = """HloModule jit_decode

%fused_norm (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %mul.1 = f32[8]{0} multiply(%p, %p)
}

%layer (t: (f32[8])) -> (f32[8]) {
  %norm.2 = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused_norm
  %ffi_call.3 = (f32[8]{0}) custom-call(%norm.2), custom_call_target="packlight_matmul_0a"
  ROOT %ffi_call.4 = (f32[8]{0}) custom-call(%norm.2), custom_call_target="packlight_attention_0a"
}

%cond (t: (f32[8])) -> pred[] {
  ROOT %less.5 = pred[] compare(%a, %b), direction=LT
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %while.6 = (f32[8]{0}) while(%x), condition=%cond, body=%layer
  %ffi_call.7 = (f32[8]{0}) custom-call(%while.6), custom_call_target="packlight_matmul_0a"
  ROOT %sort.8 = f32[8]{0} fusion(%ffi_call.7), kind=kLoop, calls=%other
}
"""


@pytest.mark.parametrize("mixing", breakdown.MIXING)
@pytest.mark.parametrize("product", breakdown.PRODUCTS)
def test_parts_follow_from_the_program(product, mixing):
    products, attention, layers, rest = breakdown.PARTS
    parts = breakdown.parts_of(HLO.replace("packlight_attention", mixing).replace("packlight_matmul", product))
    assert {name for name, part in parts.items() if part == products} == {"ffi_call.3", "ffi_call.7"}
    assert {name for name, part in parts.items() if part == attention} == {"ffi_call.4"}
    assert {name for name, part in parts.items() if part == layers} == {"norm.2", "p", "mul.1"}
    assert {name for name, part in parts.items() if part == rest} == {"less.5", "while.6", "sort.8"}


def test_a_span_counts_without_what_ran_inside():
    spans = [
        ("loop", 0.0, 10.0),
        ("a", 1.0, 4.0),
        ("b", 2.0, 1.0),
        ("a", 6.0, 2.0),
        ("loop", 10.0, 5.0),
        ("c", 20.0, 1.0),
    ]
    assert breakdown.own_times(spans) == {"loop": 9.0, "a": 5.0, "b": 1.0, "c": 1.0}


def test_a_real_step_is_accounted_for(tmp_path, monkeypatch, capsys):
    mix = {"default": "Q4_K", "output": "Q6_K"}
    model = write_llama(tmp_path / "m.gguf", layers=2, embed=256, ffn=512, context=64, formats=mix)
    monkeypatch.setattr(sys, "argv", ["breakdown", f"--model={model}", "--tokens=8", f"--results={tmp_path}"])
    breakdown.main()
    record = render.records(tmp_path)["breakdown"][-1]
    assert list(record["parts_ms"]) == [*breakdown.PARTS, "outside the program"]
    assert all(record["parts_ms"][part] > 0 for part in breakdown.PARTS)
    assert sum(record["parts_ms"].values()) == pytest.approx(record["step_ms"])
    assert len(capsys.readouterr().out.splitlines()) == 5
    run = render.records()["tinyllama-1.1b"][-1] | {"machine": record["machine"]}
    text = render.tables({"breakdown": [record], "tinyllama-1.1b": [run]})
    assert "A decode step of m.gguf at depth 0, from a profile: matrix products " in text
