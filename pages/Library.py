"""The Library page: see pages/parts/library_page.py."""

from pages.parts import library_page

library_page.draw()
