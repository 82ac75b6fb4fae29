"""The Compare page: see pages/parts/compare_page.py."""

from pages.parts import compare_page

compare_page.draw()
