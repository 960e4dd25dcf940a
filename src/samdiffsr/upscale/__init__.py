"""Upscale pictures and files.

    jobs = plan(["photos"], "large", suffix="_x4")
    upscale_files(lambda: load_model("default"), jobs, Settings(seed=0))

Torch and the pipeline are imported inside the functions, so that planning is quick.
"""

from samdiffsr.load import find_device, load_model
from samdiffsr.upscale.batch import Progress, Report, Settings, upscale_files
from samdiffsr.upscale.cluster import Work, upscale_anywhere, upscale_work
from samdiffsr.upscale.enlarge import enlarge
from samdiffsr.upscale.plan import FORMATS, Job, plan, read_list
from samdiffsr.upscale.size import Goal
from samdiffsr.upscale.uris import is_uri

__all__ = [
    "FORMATS",
    "Goal",
    "Job",
    "Progress",
    "Report",
    "Settings",
    "Work",
    "enlarge",
    "find_device",
    "is_uri",
    "load_model",
    "plan",
    "read_list",
    "upscale_anywhere",
    "upscale_files",
    "upscale_work",
]
