"""The Health page: see pages/parts/health_page.py."""

from pages.parts import health_page

health_page.draw()
