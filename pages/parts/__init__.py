"""What the pages share. A package inside `pages/`, because Streamlit takes only the scripts directly in there as pages.

Neither torch nor DuckDB is imported here: the pages talk to `core.workbench` and draw tables.
"""
