"""The embedded model, which runs where no model is named: `MODEL_CARD.md` says what it is and how it was made.

Knows where its file is and imports nothing of packlight.
"""

import pathlib

MODEL = pathlib.Path(__file__).with_name("packlight-demo-Q4_K_M.gguf")
QUESTION = "What does os.path.join do?"
# what it continues when nothing else is asked of it: the question, as the model's chat template writes it
PROMPT = f"<|user|>{QUESTION}<|end|><|assistant|>"
