# SPDX-License-Identifier: Apache-2.0
"""Text in, text out. The package can itself be called: ``mindformers.pipeline("text_generation", model=...)``.

The name ``mindformers.pipeline`` is this package once it is imported, in whatever order; calling it calls the function
``pipeline`` in it, so that both ``from mindformers import pipeline`` and ``from mindformers.pipeline import pipeline``
give something to call.
"""

import sys
import types
from typing import Any

from mindformers.pipeline.factory import TASKS, build_pipeline, pipeline
from mindformers.pipeline.text_generation_pipeline import TextGenerationPipeline

__all__ = ["TASKS", "TextGenerationPipeline", "build_pipeline", "pipeline"]


class _CallablePackage(types.ModuleType):
    """A package whose call is that of its function of the same name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See :func:`mindformers.pipeline.factory.pipeline`."""
        return pipeline(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
