"""A small causal world model: moving shapes that obey a mouse and two buttons, frame by frame."""
