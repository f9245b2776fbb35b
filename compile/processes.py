"""Several processes that run one model together, through `jax.distributed`: each owns a part of the mesh's devices, and
all run the same steps with the same arguments.
"""

import jax

from packlight.common.errors import Argument, ConfigError
from packlight.compile.config import CompileConfig


def join(coordinator: str, count: int, number: int, config: CompileConfig) -> None:
    """Makes this process number `number` of `count`; waits for the others. Must come before jax looks at its devices.

    coordinator: host:port where process 0 listens. On a CPU each process shows its share of the mesh's devices.
    Raises ConfigError for numbers that do not fit the mesh, and when the others cannot be reached.
    """
    devices = config.mesh.data * config.mesh.tensor
    if not 0 <= number < count:
        raise ConfigError(Argument("process_id", number), f" is outside 0..{count - 1}")
    if devices % count:
        said = f" does not divide the {devices} devices of config key 'mesh'"
        raise ConfigError(Argument("num_processes", count), said)
    if config.platform == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.config.update("jax_num_cpu_devices", devices // count)
    try:
        jax.distributed.initialize(coordinator, count, number)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(Argument("coordinator", coordinator), f": {str(error).splitlines()[0]}") from None
