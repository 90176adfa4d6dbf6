"""Programs that their authors wrote for OpenAI, run unchanged against a whole nowserving."""
