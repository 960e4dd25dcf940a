"""Upscale pictures and files.

    jobs = plan(["photos"], "large", suffix="_x4")
    upscale_files(lambda: load_model("default"), jobs, Settings(seed=0))

Torch and the pipeline are imported inside the functions, so that planning is quick.
"""

from samdiffsr.load import find_device, load_model
from samdiffsr.upscale.batch import Progress, Report, upscale_files
from samdiffsr.upscale.cluster import Work, upscale_on_cluster, upscale_work
from samdiffsr.upscale.enlarge import enlarge
from samdiffsr.upscale.plan import FORMATS, Job, plan, read_list
from samdiffsr.upscale.settings import FileSettings, Settings, from_text
from samdiffsr.upscale.size import OutputSize
from samdiffsr.upscale.uris import is_uri

__all__ = [
    "FORMATS",
    "FileSettings",
    "Job",
    "OutputSize",
    "Progress",
    "Report",
    "Settings",
    "Work",
    "enlarge",
    "find_device",
    "from_text",
    "is_uri",
    "load_model",
    "plan",
    "read_list",
    "upscale_files",
    "upscale_on_cluster",
    "upscale_work",
]
