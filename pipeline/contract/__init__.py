"""What the pipeline and the serving layer agree on: settings, tables, layout, and what is published.

Light imports only: the server starts from here.
"""
