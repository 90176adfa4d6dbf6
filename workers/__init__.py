"""What happens later: the pacer, the limiter, the calls upstream, the sweeps. Imports models, never api."""
