"""What an unlearned model gives away when it is attacked: trained again, quantised, asked often or in other words."""
