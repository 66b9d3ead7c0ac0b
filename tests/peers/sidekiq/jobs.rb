# frozen_string_literal: true

# What Sidekiq runs beside the tests: sidekiq -r ./jobs.rb. Where Redis is, says REDIS_URL.
#
# A job says what it did in lists: "peer:began" when it begins and "peer:ran" when it has ended well, each entry
# {"class", "args", "jid", "pid"}.

require_relative "setup"

# Scheduled jobs and retries are looked for soon and often, and each heartbeat comes soon: nobody waits for ten seconds.
Sidekiq.options[:poll_interval_average] = 0.3
require "sidekiq/launcher"
class Sidekiq::Scheduled::Poller
  private def initial_wait = nil
end
class Sidekiq::Launcher
  remove_const(:BEAT_PAUSE)
  BEAT_PAUSE = 0.5
end

module Told
  def tell(list, args)
    entry = Sidekiq.dump_json("class" => self.class.name, "args" => args, "jid" => jid, "pid" => Process.pid)
    Sidekiq.redis { |redis| redis.rpush(list, entry) }
  end
end

# Takes any arguments, and ends at once.
class Note
  include Sidekiq::Worker
  include Told

  def perform(*args)
    tell("peer:began", args)
    tell("peer:ran", args)
  end
end

# Fails each time; its first argument is what it says. Tried again after a second, and at most ten more.
class Fails
  include Sidekiq::Worker
  include Told
  sidekiq_retry_in { 1 }

  def perform(*args)
    tell("peer:began", args)
    raise ArgumentError, args.first.to_s
  end
end

# Fails until the key "peer:mend" is there.
class FailsUntilMended
  include Sidekiq::Worker
  include Told
  sidekiq_retry_in { 1 }

  def perform(*args)
    tell("peer:began", args)
    raise "not mended" unless Sidekiq.redis { |redis| redis.get("peer:mend") }
    tell("peer:ran", args)
  end
end

# Is busy until somebody pushes to the list that its first argument names; a minute at most.
class Waits
  include Sidekiq::Worker
  include Told

  def perform(*args)
    tell("peer:began", args)
    Sidekiq.redis { |redis| redis.blpop(args.first, timeout: 60) }
    tell("peer:ran", args)
  end
end

# The first heartbeat of a process: now Sidekiq's pages show it.
Sidekiq.configure_server do |config|
  config.on(:heartbeat) do
    $stdout.puts "registered"
    $stdout.flush
  end
end
