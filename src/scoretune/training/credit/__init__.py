"""Who deserves what: from rewards, critics and gradients to what single steps are worth."""
