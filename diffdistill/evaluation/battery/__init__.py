"""Several encoders as one ruler: distances and variety of generators, each as a ratio to the teacher's."""
