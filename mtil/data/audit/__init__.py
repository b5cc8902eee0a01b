"""What a collection hides: near-copies, marks on images, odd masks."""
