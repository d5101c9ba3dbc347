"""What is done to a surface before it gets colours: small loose parts are dropped, and faces are made fewer."""

from __future__ import annotations

import numpy as np

from diffdistill.errors import UserError
from diffdistill.text3d.mesh.packages import needed
from diffdistill.text3d.mesh.triangles import face_areas


def face_components(n_vertices: int, faces: np.ndarray) -> np.ndarray:
    """To which connected part each face belongs: (M,) int, the parts numbered from 0.

    Faces are connected where they share a vertex.

    >>> face_components(7, np.array([[0, 1, 2], [4, 5, 6], [2, 1, 3]])).tolist()
    [0, 1, 0]
    """
    sparse = needed("scipy.sparse")
    edges = faces[:, [0, 1, 1, 2]].reshape(-1, 2)
    graph = sparse.coo_matrix((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), (n_vertices, n_vertices))
    part_of_vertex = needed("scipy.sparse.csgraph").connected_components(graph, directed=False)[1]
    made: np.ndarray = np.unique(part_of_vertex[faces[:, 0]], return_inverse=True)[1]
    return made


def without_small_parts(
    vertices: np.ndarray, faces: np.ndarray, least_share: float, only_largest: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces of the connected parts that are large enough.

    Args:
        vertices: (N, 3).
        faces: (M, 3).
        least_share: parts whose area is a smaller share of the largest part's area are dropped.
        only_largest: whether all parts but the largest one are dropped. Hollows inside of it are such parts too.
    """
    part_of_face = face_components(len(vertices), faces)
    areas = np.bincount(part_of_face, face_areas(vertices, faces))
    kept = np.arange(len(areas)) == areas.argmax() if only_largest else areas >= least_share * areas.max()
    return (vertices, faces) if kept.all() else used_vertices(vertices, faces[kept[part_of_face]])


def used_vertices(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vertices that faces name, in their order, and the faces with their new numbers.

    >>> points, triangles = used_vertices(np.eye(4)[:, :3], np.array([[3, 1, 0]]))
    >>> len(points), triangles.tolist()
    (3, [[2, 1, 0]])
    """
    used, numbers = np.unique(faces, return_inverse=True)
    return vertices[used], numbers.reshape(-1, 3).astype(np.int32)


def with_fewer_faces(vertices: np.ndarray, faces: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces with at most `most` faces, by collapsing the edges of the least quadric error.

    (Garland and Heckbert 1997, as in fast-simplification.) A closed mesh stays closed, but for very few faces: a mug of
    50 may come out open.

    Raises:
        UserError: the package is not installed, or so few faces cannot be reached.
    """
    if len(faces) <= most:
        return vertices, faces
    simplify = needed("fast_simplification").simplify
    points, triangles = simplify(np.array(vertices, np.float32), np.array(faces, np.int32), target_count=most)
    if not 0 < len(triangles) <= most:
        raise UserError(f"a mesh of {len(faces)} faces was to have at most {most}, and {len(triangles)} are left")
    return used_vertices(points.astype(np.float32), triangles)
