"""Teachers of views: 2D and multi-view diffusion models, as text to 3D asks them.

view_teacher            what text to 3D needs of a teacher
embedded_prior          the small multi-view prior in pixel space
stable_diffusion        Stable Diffusion 1.x and 2.x: one view at a time, with prompts that name the direction
mvdream                 MVDream: four views of an object at once, each with its camera
    mv_adapter              MV-Adapter on Stable Diffusion 2.1: six views at once
"""
