"""Features at points of a box, by interpolation, and the heads that read distance and colour from them.

hash_grid, dense_levels   tables that all objects share     planes, voxels   tensors that a generator made
                 `------------- features (P or 1, N, C) -- heads --> feature_field: signed distance, colour
"""
