"""Decorators of the two kinds of stage, `ops_stage` and `train_stage`, with their images.

No other module names images. A component installs nothing: the library is in its image, and for local runs in the
environment. Tags are immutable, since Kubeflow's cache keys contain an image's name and not its content.
"""

from functools import partial

from kfp import dsl

from distilrank import __version__

OPS_IMAGE = f"distilrank/ops:{__version__}"
TRAIN_IMAGE = f"distilrank/train:{__version__}"

ops_stage = partial(dsl.component, base_image=OPS_IMAGE, install_kfp_package=False)
train_stage = partial(dsl.component, base_image=TRAIN_IMAGE, install_kfp_package=False)
