"""Label Studio on one side, masks on the other. Imports without torch."""
