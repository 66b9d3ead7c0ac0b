# frozen_string_literal: true

# What every script here begins with: Sidekiq, and none of the warnings that this pair of Sidekiq and redis-rb gives at
# each command.

require "sidekiq"

Redis.silence_deprecations = true if Redis.respond_to?(:silence_deprecations=)
