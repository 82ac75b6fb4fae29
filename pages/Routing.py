"""The Routing page: see pages/parts/routing_page.py."""

from pages.parts import routing_page

routing_page.draw()
