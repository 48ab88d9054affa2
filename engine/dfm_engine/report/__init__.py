"""Contact sheets and the self-contained HTML report."""
