"""`manage.py demo_weather storm|calm`: how the demo's mail server behaves from now on."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from jobsboard.demo import place


class Command(BaseCommand):
    """Set or show the weather."""

    help = "Make the demo's mail server slow and failing (storm) or well (calm); without an argument, say which it is."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("weather", nargs="?", choices=["calm", "storm"])

    def handle(self, *args: Any, **options: Any) -> None:
        if options["weather"]:
            place.set_weather(options["weather"])
        self.stdout.write(place.weather())
