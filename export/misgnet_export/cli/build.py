"""The ``misgnet-export build`` command."""

from __future__ import annotations

from misgnet_export.pipeline.request import BuildRequest
from misgnet_runtime.cli.app import out_console
from misgnet_runtime.cli.options import takes_options
from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.log import current


@takes_options
def build(request: BuildRequest) -> None:
    """Compile a network into a bundle: engines, manifest and evidence. Fails if an engine loses too much F1."""
    _need_compiler()
    from misgnet_export.pipeline.build import build as run
    from misgnet_export.report import parity_table, stage_table, throughput_table

    built = run(request, out_console)
    out_console.print(stage_table(built.stages))
    out_console.print(parity_table(built.draft.evidence.parity))
    out_console.print(throughput_table(built.draft.evidence.timings))
    current().result([f"bundle: {built.bundle}", f"report: {built.report}"])


def _need_compiler() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
        import onnxsim  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise UnavailableError(
            f"`misgnet-export build` requires {error.name}: pip install 'misgnet-export[export]'"
        ) from error
