"""How the parts are started on one machine: embedded servers, the supervisor behind `up`, the local model, the demo."""
