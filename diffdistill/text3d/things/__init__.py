"""Named things whose views are known: what a prior is trained on, and what generators are measured against.

    procedural     12 things as signed distance functions, whose proportions vary        sphere_tracing: their views
    models3d       named 3D models of the public domain, from a Debian package           splatting: their views
    catalogue      prompts ("a red mug"), and which of them are held out
    views          views of all things, with colour and background put in when they are asked for

All things lie in the ball of radius 0.95 around the origin. +z is up and the front faces +x, as in `text3d.field`.
"""
