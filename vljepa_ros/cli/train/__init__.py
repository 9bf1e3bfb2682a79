"""The commands of a workstation with torch: from nothing to a bundle."""
