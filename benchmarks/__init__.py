"""What only the development of pfb_mmseg needs: timing, ablations, coverage. Not in the wheel."""
