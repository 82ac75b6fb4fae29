"""The Expert page: see pages/parts/expert_page.py."""

from pages.parts import expert_page

expert_page.draw()
