"""`manage.py demo_weather storm|calm`: how the demo's providers behave from now on."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from jobsboard.demo import place


class Command(BaseCommand):
    """Set or show the weather."""

    help = "Make the demo's mail server slow and failing and its CRM late (storm), or both well (calm); or say which."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("weather", nargs="?", choices=["calm", "storm"])

    def handle(self, *args: Any, **options: Any) -> None:
        if options["weather"]:
            place.set_weather(options["weather"])
        weather = place.weather()
        self.stdout.write(weather.kind + (f" since {weather.since:%Y-%m-%d %H:%M:%S} UTC" if weather.since else ""))
