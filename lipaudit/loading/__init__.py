"""Where networks and images come from, and what is checked on the way in."""
