# frozen_string_literal: true

# What Sidekiq's own API sees and does, as JSON.
#
#   ruby api.rb show
#   ruby api.rb history DAYS                                  what was processed and what failed, by day
#   ruby api.rb retry|kill|delete retry|dead|schedule JID     a job of that set
#   ruby api.rb clear QUEUE
#   ruby api.rb quiet|stop IDENTITY|all                       processes; prints the identities

require "json"
require_relative "setup"
require "sidekiq/api"

SETS = {"retry" => Sidekiq::RetrySet, "dead" => Sidekiq::DeadSet, "schedule" => Sidekiq::ScheduledSet}.freeze

def one(job)
  job.item.merge("latency" => job.latency)
end

def sorted(set)
  set.map { |entry| one(entry).merge("score" => entry.score) }
end

def show
  stats = Sidekiq::Stats.new
  {
    stats: {
      processed: stats.processed, failed: stats.failed, enqueued: stats.enqueued, scheduled: stats.scheduled_size,
      retries: stats.retry_size, dead: stats.dead_size, processes: stats.processes_size, busy: stats.workers_size
    },
    queues: Sidekiq::Queue.all.to_h do |queue|
      [queue.name, {size: queue.size, latency: queue.latency, paused: queue.paused?, jobs: queue.map { |job| one(job) }}]
    end,
    retries: sorted(Sidekiq::RetrySet.new),
    scheduled: sorted(Sidekiq::ScheduledSet.new),
    dead: sorted(Sidekiq::DeadSet.new),
    processes: Sidekiq::ProcessSet.new.map do |process|
      %w[hostname started_at pid tag concurrency queues labels identity busy beat rss rtt_us]
        .to_h { |key| [key, process[key]] }.merge("stopping" => process.stopping?)
    end,
    work: Sidekiq::Workers.new.map do |process, thread, work|
      payload = work["payload"]
      payload = JSON.parse(payload) if payload.is_a?(String)
      {process: process, thread: thread, queue: work["queue"], run_at: work["run_at"], payload: payload}
    end
  }
end

def history(days)
  history = Sidekiq::Stats::History.new(days)
  {processed: history.processed, failed: history.failed}
end

def of_set(verb, name, jid)
  entry = SETS.fetch(name).new.find_job(jid) or abort "there is no job #{jid} in #{name}"
  entry.public_send(verb)
  jid
end

def of_processes(verb, which)
  chosen = Sidekiq::ProcessSet.new.select { |process| which == "all" || process.identity == which }
  abort "there is no process #{which}" if chosen.empty? && which != "all"
  chosen.each(&:"#{verb}!").map(&:identity)
end

command, *rest = ARGV
answer =
  case command
  when "show" then show
  when "history" then history(Integer(rest.first))
  when "retry", "kill", "delete" then of_set(command, *rest)
  when "clear" then Sidekiq::Queue.new(rest.first).clear && rest.first
  when "quiet", "stop" then of_processes(command, rest.first)
  else abort "no such command: #{command.inspect}"
  end
puts JSON.dump(answer)
