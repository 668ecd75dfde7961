"""What is behind a figure: steps and decisions timed, runs compared, models and options tried."""
