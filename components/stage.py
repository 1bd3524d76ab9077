"""The two kinds of stage and the images they run in; the only place that names images.

A component is lightweight and installs nothing: its image brings the library, and locally so does the environment.
Tags are immutable, since Kubeflow's cache keys hold an image's name and not its content.
"""

from functools import partial

from kfp import dsl

from distilrank import __version__

OPS_IMAGE = f"distilrank/ops:{__version__}"
TRAIN_IMAGE = f"distilrank/train:{__version__}"

ops_stage = partial(dsl.component, base_image=OPS_IMAGE, install_kfp_package=False)
train_stage = partial(dsl.component, base_image=TRAIN_IMAGE, install_kfp_package=False)
