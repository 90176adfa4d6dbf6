"""Tests of workers/pacer/stages/."""
