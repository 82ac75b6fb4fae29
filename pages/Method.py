"""The Method page: see pages/parts/method_page.py."""

from pages.parts import method_page

method_page.draw()
