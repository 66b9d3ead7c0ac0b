# frozen_string_literal: true

# Enqueues jobs of any class as a Ruby program does, and prints their ids as JSON.
#
#   ruby enqueue.rb CLASS '[[1, "a"], [2, "b"]]' '{"queue": "high", "retry": 3, "in": 0.5, "bulk": true}'
#
# The second argument has the arguments of each job. In the third, "in" is perform_in, "bulk" is perform_bulk, and
# all others are options of the class. The class need not be known here.

require "json"
require_relative "setup"

name, args, options = ARGV
args = JSON.parse(args || "[[]]")
options = JSON.parse(options || "{}")
bulk = options.delete("bulk")
delay = options.delete("in")

# A class of this name, within modules if the name says so.
kind = name.split("::").reduce(Object) do |scope, part|
  next scope.const_get(part, false) if scope.const_defined?(part, false)
  scope.const_set(part, Class.new)
end
kind.include(Sidekiq::Worker)

ids =
  if bulk
    # With "in" it is the same instant for all.
    kind.set(options)
    items = {"class" => kind, "args" => args}.merge(options)
    items["at"] = Time.now.to_f + delay if delay
    Sidekiq::Client.push_bulk(items)
  else
    args.map do |one|
      setter = kind.set(options)
      delay ? setter.perform_in(delay, *one) : setter.perform_async(*one)
    end
  end
puts JSON.dump(ids)
