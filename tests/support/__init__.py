"""What several tests need: networks, runs, data in official layouts, and processes."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""Of the checkout."""
