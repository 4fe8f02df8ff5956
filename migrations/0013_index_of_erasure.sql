DROP INDEX "instances_to_erase";--> statement-breakpoint
CREATE INDEX "instances_to_erase" ON "instances" USING btree ("terminated_at") WHERE terminated_at IS NOT NULL AND name <> '';