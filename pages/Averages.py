"""The Averages page: see pages/parts/averages_page.py."""

from pages.parts import averages_page

averages_page.draw()
