# frozen_string_literal: true

# How many no-op jobs a second one Sidekiq process does: ruby bench.rb JOBS THREADS. Prints JSON.
#
# Without its log, which costs it more than the jobs do. The database that REDIS_URL names is emptied first.

require "json"
require_relative "setup"
require "sidekiq/cli"
require "sidekiq/launcher"
require "sidekiq/processor"

class NoOp
  include Sidekiq::Worker

  def perform(_number)
  end
end

def now
  Process.clock_gettime(Process::CLOCK_MONOTONIC)
end

jobs, threads = ARGV.map { |text| Integer(text) }

Sidekiq.logger.level = Logger::ERROR
Sidekiq.options[:concurrency] = threads
Sidekiq.options[:queues] = ["default"]
Sidekiq.options[:identity] = "bench:#{Process.pid}"
Sidekiq.redis = {size: threads + 5}
Sidekiq.redis(&:flushdb)

begun = now
(0...jobs).each_slice(1000) do |numbers|
  Sidekiq::Client.push_bulk("class" => NoOp, "args" => numbers.map { |number| [number] })
end
enqueued = now - begun

# The threads take it from here to where the list is empty and nothing is under way.
launcher = Sidekiq::Launcher.new(Sidekiq.options)
begun = now
launcher.run
left = -> { Sidekiq.redis { |redis| redis.llen("queue:default") } }
sleep 0.02 until left.call.zero? && Sidekiq::Processor::WORKER_STATE.size.zero?
took = now - begun

puts JSON.dump(
  jobs: jobs, threads: threads, seconds: took.round(3), jobs_per_second: (jobs / took).round,
  enqueued_per_second: (jobs / enqueued).round
)
$stdout.flush
# Without waiting for threads that wait for jobs.
exit!(true)
