"""Two traces side by side: what was asked differently, what came out differently.

`link` reads and writes the address, `align` says which tokens correspond, `tables` holds the numbers, `words` the
sentences, `charts` the pictures. No Streamlit, no model.
"""
