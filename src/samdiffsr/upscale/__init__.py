"""Enlarge pictures and files.

    jobs = plan(["photos"], "large", suffix="_x4")
    upscale_files(lambda: load_model("default"), jobs, Settings(seed=0), FileSettings(quality=90))

Torch and the pipeline are imported inside the functions, so that planning is quick; settings need neither numpy nor Pillow.
"""
