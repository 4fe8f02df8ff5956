ALTER TABLE "processes" ADD COLUMN "regions" text[] DEFAULT '{}' NOT NULL;--> statement-breakpoint
CREATE INDEX "instance_use_of_disk" ON "instance_use" USING btree ("instance_id") WHERE disk_step > 0;--> statement-breakpoint
CREATE INDEX "instances_shard" ON "instances" USING btree (get_byte(uuid_send("id"), 15),"id") WHERE desired_state = 'running';--> statement-breakpoint
CREATE INDEX "instances_attempts" ON "instances" USING btree ("id") WHERE attempts > 0 AND ready_at IS NOT NULL;