"""The report's figures, the graded table and the gallery, from the files of finished runs."""
