# frozen_string_literal: true

# Sidekiq's pages: puma -b tcp://127.0.0.1:PORT web.ru. Where Redis is, says REDIS_URL.

require "securerandom"
require_relative "setup"
require "sidekiq/web"
require "rack/session/cookie"

# Forms are taken only with the token that stands in the session; a restart begins new sessions.
use Rack::Session::Cookie, secret: SecureRandom.hex(64), same_site: true
run Sidekiq::Web
