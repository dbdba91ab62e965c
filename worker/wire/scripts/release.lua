#!lua flags=allow-oom
for _, held in ipairs(args.jobs) do
  local job = read_job(held[1])
  if holds(job, held[2]) then
    if job.cancelled then cancel(job) else requeue(job) end
  end
end
show_state(args.worker)
publish_frames()
return 1
