"""Text to 3D: generators that make an object from a prompt in one pass, rendering, and meshes."""
