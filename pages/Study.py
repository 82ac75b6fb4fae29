"""The Study page: see pages/parts/study_page.py."""

from pages.parts import study_page

study_page.draw()
