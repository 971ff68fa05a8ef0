"""Development tools: what the build looks for, and what it reports. Not installed with the package."""
