"""Evaluation of a text-to-3D model as a report: rows of prompts, tables of splits and things, and a page of pictures.

    splits           which prompts are measured, and who saw them in training
    evaluation       one row a prompt, kept in a folder; the record of all
    janus            how alike opposite views are, beside true renders
    surface          whether the extracted mesh is closed, and of how many parts it is
    render_kd        kernel distance between views of models and true renders
    variety          how far objects are from one another
    text_retrieval   R@1 and R-probability by a text tower, such as CLIP's
    summary, table, pictures, page   what is written

`text3d.measures` holds the numbers that take seconds, which are measured here too.
"""
